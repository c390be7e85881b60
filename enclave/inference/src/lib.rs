//! Loads a model and generates text; knows no socket, no key and no NSM.
