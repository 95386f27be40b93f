"""Chat models behind one protocol: messages with images in, text out."""
