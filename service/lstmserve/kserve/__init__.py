"""The KServe v2 dialect's stubs. The server's side of it is lstmserve.server.kserve."""
