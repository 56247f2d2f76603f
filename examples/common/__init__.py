"""What the examples share: serving a page, and the page's connection that comes back by itself."""
