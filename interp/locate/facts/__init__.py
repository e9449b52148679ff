"""Where facts are recalled: attention knockout, lenses, and the MLP layers and neurons that hold them."""
