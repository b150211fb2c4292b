"""Who a session is: how it opens, finds room, and ends. Knows no store and no step."""
