"""How fast lstmserve is, compared with the limits of its parts. No timing is pass or fail."""
