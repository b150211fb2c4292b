"""What the client needs of gRPC and of waiting, twice under the same names: aio and threads."""
