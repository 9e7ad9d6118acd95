"""Bytes and tables on disks and in object storage, read and written so that nothing is half there."""
