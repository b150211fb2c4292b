"""The KServe v2 dialect with Triton's sequences: what stock Triton clients speak, in and out."""
