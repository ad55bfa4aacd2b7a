"""Folder forms that prod9 writes: BraTS 2023, nnU-Net's raw form, and BIDS. :mod:`prod9.data.layouts` reads them."""
