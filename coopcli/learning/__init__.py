"""How a context, or another method's classifier, is learned."""
