package fixture

type events struct {
	c chan int // want "channel type"
}

func goroutines[C <-chan int](e events, c C) { // want "channel type"
	go func() {}()  // want "go statement"
	e.c <- 1        // want "send"
	<-e.c           // want "receive"
	for range e.c { // want "range over a channel"
	}
	for range c { // want "range over a channel"
	}
	select { // want "select statement"
	default:
	}
}
