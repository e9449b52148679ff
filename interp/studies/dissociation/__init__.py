"""The study of double dissociation: fact MLPs against retrieval heads, each cut on facts and on what is in the context."""
