"""What `lstmserve export --module` reads: the file, its class, the weights and the example."""
