"""The KServe v2 dialect with Triton's sequences, which stock Triton clients speak."""
