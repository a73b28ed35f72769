"""How good a model is, and how varied its captions are."""
