"""The stages of a fusion, one module each, and the formats between them."""
