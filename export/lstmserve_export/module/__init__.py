"""Kind "network": any module around recurrent layers becomes a step graph, which is proved."""
