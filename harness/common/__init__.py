"""Small parts that every room uses: digests, seeds, files, messages."""
