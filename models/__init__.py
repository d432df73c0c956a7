if __name__ == "models":
    raise ImportError("import this package as fsframework.models: the bare name would load every file twice")
