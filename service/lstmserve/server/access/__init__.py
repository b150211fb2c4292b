"""Who may use the server: tokens, tenants and their limits, TLS, flood protection."""
