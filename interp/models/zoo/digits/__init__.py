"""A tiny text-to-image pipeline whose memorized pictures are known: digits, some of them shown hundreds of times."""
