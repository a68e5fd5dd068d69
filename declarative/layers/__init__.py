"""Ready layers: nodes with natural shapes and closed-form structure."""
