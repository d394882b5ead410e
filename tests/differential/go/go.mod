module example/differential

go 1.22
