"""How fast lstmserve is, beside the limits of what it is made of. Timings; nothing is pass or fail."""
