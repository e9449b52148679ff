"""Where memorized items are held: weights, units and directions, ranked by what single items move."""
