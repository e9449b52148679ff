"""The laundry-list study: which channel carries what was listed again, and how far an edit of it helps recall."""
