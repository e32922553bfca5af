"""Full int8 LiteRT files that keep a network's answers: ranges, and what has to stay in float."""
