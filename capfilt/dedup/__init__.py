"""Near-duplicate images: pure functions of columns, and the one home of FAISS."""
