use super::*;

#[test]
fn cluster_on_several_hosts_needs_secret() {
    let written = Written::new("[cluster]\nprocesses = 2\nhosts = \"hosts\"\n");
    let hosts = written.0.path().join("hosts");
    let load = |process: &str, secret: Option<&str>| {
        let mut flags = vec![
            ("cluster.hosts".to_owned(), "--hosts", hosts.display().to_string()),
            ("cluster.process".to_owned(), "--process", process.to_owned()),
        ];
        flags.extend(secret.map(|secret| ("cluster.secret".to_owned(), "a flag", secret.to_owned())));
        Config::load(&ConfigLayers { flags, ..written.layers() })
    };
    for (addresses, needed) in [
        ("127.0.0.1:1\nlocalhost:2\n10.0.0.1:3\n", false),
        ("[::1]:1\n127.1.2.3:2\n", false),
        ("127.0.0.1:1\n10.0.0.1:2\n", true),
        ("127.0.0.1:1\nexample.org:2\n", true),
    ] {
        std::fs::write(&hosts, addresses).unwrap();
        let made = make_cluster_secret().unwrap();
        let other_end = if made.ends_with('x') { 'y' } else { 'x' };
        let changed = format!("{}{other_end}", &made[..made.len() - 1]);
        let with_end = format!("{made}\n");
        assert!(load("1", Some(&with_end)).is_ok());
        let mistyped = load("1", Some(&changed)).unwrap_err().to_string();
        assert!(mistyped.contains("missing or changed") && !mistyped.contains(&made[20..30]), "{mistyped}");
        for weak in [None, Some(""), Some(" "), Some("s3cr3t"), Some("0123456789abcdef0123456789abcdef")] {
            let loaded = load("1", weak);
            assert_eq!(loaded.is_err(), needed, "{addresses}");
            if let Err(errors) = loaded {
                let line = errors.to_string();
                let names_remedy =
                    line.contains("swelter cluster secret") && line.contains("SWELTER_CLUSTER__SECRET");
                assert!(line.starts_with("cluster.secret") && names_remedy, "{line}");
                assert!(!line.contains("s3cr3t"), "{line}");
            }
        }
        // Between hosts, a warning says that connections are not encrypted.
        let warnings = load("1", Some(&made)).unwrap().warnings();
        assert_eq!(
            warnings.iter().filter(|warning| warning.contains("cluster.tls")).count(),
            usize::from(needed)
        );
        // The supervisor generates one.
        assert!(load("", None).is_ok());
    }
}

#[test]
fn cluster_tls_needs_all_three_files_or_none() {
    let written = Written::new("");
    let path = written.0.path().join("a.pem");
    std::fs::write(&path, "").unwrap();
    let load = |given: &[&str]| {
        let flags =
            given.iter().map(|name| (format!("cluster.tls.{name}"), "a flag", path.display().to_string()));
        Config::load(&ConfigLayers { flags: flags.collect(), ..written.layers() })
    };
    assert!(load(&[]).unwrap().plan.cluster.tls.is_none());
    let all = load(&["certificate", "key", "ca"]).unwrap().plan.cluster.tls.unwrap();
    assert_eq!([all.certificate, all.key, all.ca], [(); 3].map(|()| path.clone()));
    for given in [&["certificate"][..], &["key", "ca"], &["certificate", "ca"]] {
        let errors = load(given).unwrap_err();
        assert_eq!(errors.0.len(), 3 - given.len(), "{errors}");
        assert!(
            errors.0.iter().all(|error| error.problem.contains("name all three files, or none")),
            "{errors}"
        );
    }
    std::fs::remove_file(&path).unwrap();
    assert!(load(&["certificate", "key", "ca"]).unwrap_err().to_string().contains("a.pem is not a file"));
}
