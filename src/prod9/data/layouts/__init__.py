"""Finding cases in folders and lists: BraTS, Decathlon, nnU-Net, BIDS, MedMNIST3D, CSV and JSON lists."""
