"""How good answers are: metrics, the grades of a whole answers artifact, and what they come to."""
