"""Small memory architectures and small models whose memory is known, one subject a file or folder."""
