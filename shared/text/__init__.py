"""Text to documents, and documents to token ids: a coordinator's, and what a volunteer keeps."""
