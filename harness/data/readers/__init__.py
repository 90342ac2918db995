"""Raw images as they come: archives, folders, IDX files, the hub."""
