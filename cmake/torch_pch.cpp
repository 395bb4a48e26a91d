// Only a place for the precompiled header to be built.
