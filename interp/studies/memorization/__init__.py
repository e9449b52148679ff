"""The study of memorization: deleting what a text-to-image pipeline has memorized, and trying to get it back."""
