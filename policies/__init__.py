if __name__ == "policies":
    raise ImportError("import this package as fsframework.policies: the bare name would load every file twice")
