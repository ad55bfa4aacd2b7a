"""NIfTI headers and voxels, as files hold them; `prod9.volumes` is the door to both."""
