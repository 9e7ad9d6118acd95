"""The cache: prepared images and their tables in a folder; made, packed, verified and looked through."""
