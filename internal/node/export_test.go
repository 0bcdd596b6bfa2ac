package node

// KeyedStep is for tests that need two keys with one number.
var KeyedStep = keyedStep
