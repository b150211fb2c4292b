"""How sessions open, expire, make room for each other, and end. Knows no store and no step."""
