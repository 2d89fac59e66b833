//! The brain with a real store and nodes that speak through links in memory.
