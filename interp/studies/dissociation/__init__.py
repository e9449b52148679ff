"""The study of double dissociation: fact MLPs and retrieval heads, each cut on facts and on contexts."""
