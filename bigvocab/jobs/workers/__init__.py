"""Where the rows of a job are worked: in processes of this machine (`local`), or as tasks of a cluster (`ray`)."""
