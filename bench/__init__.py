"""How fast lstmserve is, beside the limits of what it is made of. Nothing timed is pass or fail."""
