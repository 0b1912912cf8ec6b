use super::*;

fn read(text: &str) -> Result<TgmConfig, Error> {
    TgmConfig::from_dsn(&Dsn::parse_with(text, |_| None)?)
}

fn file(path: &str) -> NamedFile {
    PathBuf::from(path).into()
}

fn message(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

#[test]
fn urls_in_production_keep_their_endpoints() {
    for (url, endpoint) in [
        ("", "session.thegraph.market:443"),
        ("tgm://", "session.thegraph.market:443"),
        ("tgm://?plaintext=true", "session.thegraph.market:80"),
        ("tgm://h", "h:443"),
        ("tgm://h?plaintext=true", "h:80"),
        ("tgm://h?plaintext=TRUE", "h:443"),
        ("tgm://h:8080", "h:8080"),
        ("tgm://h:8080?plaintext=true", "h:8080"),
        ("tgm://[::1]", "[::1]:443"),
        ("tgm://[::1]:9010", "[::1]:9010"),
    ] {
        assert_eq!(read(url).unwrap().endpoint(), endpoint, "{url}");
    }
}

#[test]
fn every_parameter_has_the_documented_default() {
    let config = read("tgm://h").unwrap();
    assert!(!config.plaintext && !config.insecure);
    assert_eq!(config.keep_alive_delay, Duration::from_secs(20));
    assert_eq!(config.max_sessions_per_organization, None);
    assert_eq!(config.minimal_life, None);
    assert_eq!(config.borrow_timeout, Duration::from_secs(5));
    assert_eq!(config.borrow_wait, Duration::ZERO);
    assert_eq!(config.on_unavailable, OnUnavailable::Deny);
    assert!(config.indexer_api_key.is_none() && config.ca_file.is_none());
    assert!(config.client_identity.is_none() && config.further.is_empty());
}

#[test]
fn every_parameter_is_read() {
    let config = read(
        "tgm://h?insecure=true&request-keep-alive-delay=1m30s\
         &default-max-request-per-organization=7&indexer-api-key=k%261\
         &minimal-worker-life-duration=250ms&on-unavailable=deny&borrow-timeout=2s\
         &borrow-wait=3s&client-cert-file=c.pem&client-key-file=k.pem",
    )
    .unwrap();
    assert!(config.insecure);
    assert_eq!(config.keep_alive_delay, Duration::from_secs(90));
    assert_eq!(config.max_sessions_per_organization, Some(7));
    assert_eq!(config.indexer_api_key.unwrap().expose(), "k&1");
    assert_eq!(config.minimal_life, Some(Duration::from_millis(250)));
    assert_eq!(config.on_unavailable, OnUnavailable::Deny);
    let allowed = read("tgm://h?on-unavailable=allow").unwrap();
    assert_eq!(allowed.on_unavailable, OnUnavailable::Allow);
    assert_eq!(config.borrow_timeout, Duration::from_secs(2));
    assert_eq!(config.borrow_wait, Duration::from_secs(3));
    assert_eq!(
        config.client_identity,
        Some(Identity { certificate: file("c.pem"), key: file("k.pem") })
    );
    assert_eq!(read("tgm://h?ca-file=ca.pem").unwrap().ca_file, Some(file("ca.pem")));
}

#[test]
fn the_maximum_is_read_under_both_of_its_names_which_may_stand_together_if_they_agree() {
    for name in ["default-max-request-per-organization", "default-max-request-per-user"] {
        let maximum = |value| read(&format!("tgm://h?{name}={value}"));
        for count in [0, 4] {
            let read = maximum(count.to_string()).unwrap();
            assert_eq!(read.max_sessions_per_organization, Some(count));
        }
        for wrong in ["invalid", "-1", "1.5"] {
            let message = maximum(wrong.to_owned()).unwrap_err().to_string();
            assert!(message.contains(&format!("`{name}={wrong}`")), "{message}");
        }
    }
    for (new, old, most) in [("3", "3", 3), ("3", "", 3), ("", "3", 3), ("0", "00", 0)] {
        let both = format!(
            "tgm://h?default-max-request-per-user={old}&default-max-request-per-organization={new}"
        );
        assert_eq!(read(&both).unwrap().max_sessions_per_organization, Some(most), "{both}");
    }
    let both = "default-max-request-per-organization=1&default-max-request-per-user=2";
    let message = message(&format!("tgm://h?{both}"));
    assert!(message.contains("its old name") && message.contains("differ"), "{message}");
}

#[test]
fn invalid_values_are_refused() {
    for (url, about) in [
        ("tgm://h?request-keep-alive-delay=0", "must be above 0"),
        ("tgm://h?request-keep-alive-delay=20", "has no unit"),
        ("tgm://h?indexer-api-key=a&indexer-api-key-file=b", "one is enough"),
        ("tgm://h?request-keep-alive-delay=-1s", "is negative"),
        ("tgm://h?borrow-timeout=0s", "must be above 0"),
        ("tgm://h?borrow-wait=soon", "is not a duration"),
        ("tgm://h?on-unavailable=maybe", "is neither `deny` nor `allow`"),
        ("tgm://h?client-cert-file=c.pem", "both are needed"),
        ("tgm://h?client-key-file=c.pem", "both are needed"),
        ("tgm://h?plaintext=true&ca-file=ca.pem", "has no use for"),
        ("tgm://h?insecure=true&ca-file=ca.pem", "has no use for"),
        ("tgm://h?keep-alive-delay=1s", "nearest is `request-keep-alive-delay`"),
        ("tgm://h?max_sessions=1", "`max_sessions`"),
    ] {
        assert!(message(url).contains(about), "{url}: {}", message(url));
    }
}

#[test]
fn an_empty_value_is_the_default_of_every_parameter() {
    let names = [
        "plaintext",
        "insecure",
        "ca-file",
        "client-cert-file",
        "client-key-file",
        "indexer-api-key",
        "indexer-api-key-file",
        "request-keep-alive-delay",
        "default-max-request-per-organization",
        "default-max-request-per-user",
        "minimal-worker-life-duration",
        "borrow-timeout",
        "borrow-wait",
        "on-unavailable",
        "also",
    ];
    let default = format!("{:?}", read("tgm://h").unwrap());
    let empty = names.map(|name| format!("{name}=")).join("&");
    assert_eq!(format!("{:?}", read(&format!("tgm://h?{empty}")).unwrap()), default);
    let unset = names.map(|name| format!("{name}=$UNSET")).join("&");
    assert_eq!(format!("{:?}", read(&format!("tgm://h?{unset}")).unwrap()), default);
}

#[test]
fn a_config_made_step_by_step_equals_the_config_of_a_url() {
    let made = TgmConfig::new("[::1]")
        .port(9010)
        .also("h", 9010)
        .also("[::1]", 9011)
        .insecure(true)
        .client_identity("c.pem", "k.pem")
        .indexer_api_key_file("key")
        .keep_alive_delay(Duration::from_secs(9))
        .max_sessions_per_organization(3)
        .minimal_life(Duration::from_secs(4))
        .borrow_timeout(Duration::from_secs(2))
        .borrow_wait(Duration::from_secs(1))
        .on_unavailable(OnUnavailable::Allow);
    let read = read(
        "tgm://[::1]:9010?insecure=true&client-cert-file=c.pem&client-key-file=k.pem\
         &indexer-api-key-file=key&request-keep-alive-delay=9s\
         &default-max-request-per-organization=3&minimal-worker-life-duration=4s\
         &borrow-timeout=2s&borrow-wait=1s&on-unavailable=allow&also=h:9010,[::1]:9011",
    );
    let shown =
        |config: &TgmConfig| format!("{:?}", TgmConfig { shown_port: None, ..config.clone() });
    assert_eq!(shown(&made), shown(&read.unwrap()));
    let made = TgmConfig::default().plaintext(true);
    assert_eq!(made.endpoint(), "session.thegraph.market:80");
    let made = TgmConfig::new("h").ca_file("ca.pem").indexer_api_key(Secret::new("s3cret"));
    assert!(made.check().is_ok() && !format!("{made:?}").contains("s3cret"));
    assert!(made.clone().plaintext(true).check().is_err());
    assert!(made.indexer_api_key_file("key").check().is_err());
}

#[test]
fn messages_name_a_place_and_its_files_as_the_url_does() {
    let url = "tgm://x.$HOST:$PORT?ca-file=$CERTS/ca.pem&request-keep-alive-delay=9$UNIT";
    let read = |unit: &str| {
        let dsn = Dsn::parse_with(url, |name| {
            let values = [("HOST", "hidden"), ("PORT", "9010"), ("CERTS", "/hidden")];
            let value = values.iter().find(|(known, _)| *known == name);
            Some(value.map_or(unit, |(_, value)| value).to_owned())
        });
        TgmConfig::from_dsn(&dsn.unwrap())
    };
    let config = read("s").unwrap();
    assert_eq!(config.endpoint(), "x.hidden:9010");
    assert_eq!(config.shown_endpoint(), "x.$HOST:$PORT");
    assert_eq!(config.ca_file.as_ref().unwrap().path, std::path::Path::new("/hidden/ca.pem"));
    assert_eq!(config.ca_file.as_ref().unwrap().to_string(), "$CERTS/ca.pem");
    assert!(!format!("{config:?}").contains("hidden"), "{config:?}");
    let wrong = read("hidden").unwrap_err();
    assert!(!format!("{wrong} {wrong:?}").contains("hidden"), "{wrong}");
    assert!(wrong.to_string().contains("`9$UNIT` has an unknown unit"), "{wrong}");
}

#[test]
fn an_empty_or_blank_key_counts_as_no_key() {
    for url in ["tgm://h?indexer-api-key=", "tgm://h?indexer-api-key=%20%20"] {
        assert!(read(url).unwrap().indexer_api_key.is_none(), "{url}");
    }
}

#[test]
fn debug_does_not_show_the_key() {
    let config = read("tgm://h?indexer-api-key=s3cret").unwrap();
    let shown = format!("{config:?}");
    assert!(!shown.contains("s3cret") && shown.contains("REDACTED"), "{shown}");
}

fn try_connect(url: &str) -> Result<Connector, Error> {
    read(url)?.connector()
}

#[test]
fn a_connector_is_created_without_a_running_server() {
    for url in [
        "tgm://h?plaintext=true",
        "tgm://[::1]:1?plaintext=true",
        "tgm://h?insecure=true",
        "tgm://[::1]:1?insecure=true",
        "tgm://127.0.0.1?insecure=true",
        "tgm://h?insecure=true&also=[::1],127.0.0.1:1,i",
    ] {
        assert!(try_connect(url).is_ok(), "{url}");
    }
}

#[test]
fn a_certificate_file_that_cannot_be_used_is_named() {
    let message = |url: &str| try_connect(url).err().unwrap().to_string();
    assert!(message("tgm://h?ca-file=/nowhere/ca.pem").contains("`ca-file=/nowhere/ca.pem`"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("not.pem");
    std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nnonsense\n").unwrap();
    let file = file.display();
    let named = format!("`ca-file={file}`: TLS cannot be set up");
    assert!(message(&format!("tgm://h?ca-file={file}")).contains(&named));
    let identity = format!("tgm://h?client-cert-file={file}&client-key-file={file}&insecure=true");
    let named = format!("`client-cert-file={file}`: TLS cannot be set up");
    assert!(message(&identity).contains(&named));
}

#[test]
fn further_servers_are_read_in_their_order_with_the_default_port_of_the_scheme() {
    for (url, endpoints) in [
        ("tgm://h:9010?also=i:9011,j:9012", "h:9010,i:9011,j:9012"),
        ("tgm://h:9010?also=i", "h:9010,i:443"),
        ("tgm://h:9010?also=i&plaintext=true", "h:9010,i:80"),
        ("tgm://h?also=[::1],[2001:db8::7]:9010", "h:443,[::1]:443,[2001:db8::7]:9010"),
        ("tgm://h?also=h:80,10.0.0.1:80", "h:443,h:80,10.0.0.1:80"),
        ("tgm://h?also=i%3A9010%2Cj", "h:443,i:9010,j:443"),
        ("tgm://?also=i", "session.thegraph.market:443,i:443"),
    ] {
        let config = read(url).unwrap();
        assert_eq!(config.shown_endpoints(), endpoints, "{url}");
        assert_eq!(config.endpoint(), endpoints.split(',').next().unwrap(), "{url}");
    }
}

#[test]
fn invalid_further_servers_are_refused_and_the_parameter_is_named() {
    let many = (0..16).map(|host| format!("i{host}")).collect::<Vec<_>>().join(",");
    for (also, about) in [
        ("i,", "lists ``, which is no server"),
        (",", "lists ``, which is no server"),
        ("i,,j", "lists ``, which is no server"),
        ("i,j/pool", "lists `j/pool`, which has a scheme or a path"),
        ("tgm://i", "lists `tgm://i`, which has a scheme or a path"),
        ("i?a=1", "lists `i?a=1`, which has a scheme or a path"),
        ("i:0", "lists `i:0`, which has no port between 1 and 65535"),
        ("i:70000", "lists `i:70000`, which has no port between 1 and 65535"),
        ("i:", "lists `i:`, which has no port between 1 and 65535"),
        ("i:x", "lists `i:x`, which has no port between 1 and 65535"),
        ("i:1:2", "lists `i:1:2`, which is an IPv6 address without its brackets"),
        ("::1", "lists `::1`, which is an IPv6 address without its brackets"),
        ("[::1", "lists `[::1`, which has no valid host name"),
        ("[::x]:1", "lists `[::x]:1`, which has no valid host name"),
        (":9010", "lists `:9010`, which has no valid host name"),
        ("i:1, j:1", "lists ` j:1`, which has no valid host name"),
        ("i:1,j:1,i:1", "lists `i:1`, which is given already"),
        ("i:443,I", "lists `I:443`, which is given already"),
        ("i,h", "lists `h:443`, which is given already"),
        ("[::1],[0:0::1]:443", "lists `[::1]:443`, which is given already"),
        (many.as_str(), "lists more than 15 servers"),
        ("i,me:s3cret@j", "names a user in `also`"),
    ] {
        let said = message(&format!("tgm://h?also={also}"));
        assert!(said.contains(about) && said.contains("also"), "{also}: {said}");
        assert!(!said.contains("s3cret"), "{said}");
    }
    for host in ["i/pool", "me@i", "", "i:1", "::1", "i,j", "a b"] {
        let said = TgmConfig::new("h").also(host, 9010).check().unwrap_err().to_string();
        assert!(said.contains("`also` lists"), "{host}: {said}");
    }
    let given = TgmConfig::new("h").port(9010).also("H", 9010).check().unwrap_err();
    assert!(given.to_string().contains("`H:9010`, which is given already"), "{given}");
}

#[test]
fn messages_name_further_servers_as_the_url_does() {
    let read = |url: &str| {
        let dsn = Dsn::parse_with(url, |name| {
            let values = [("ONE", "hidden"), ("TWO", "hidden:1,hid:2"), ("BAD", "hidden:x")];
            let value = values.iter().find(|(known, _)| *known == name);
            Some(value.unwrap().1.to_owned())
        });
        let dsn = dsn.unwrap();
        (format!("{dsn:?}"), TgmConfig::from_dsn(&dsn))
    };
    for (url, shown) in [
        ("tgm://h?also=$ONE:1,x$ONE", "h:443,$ONE:1,x$ONE"),
        ("tgm://h?also=i,${ONE}", "h:443,i:443,${ONE}"),
        ("tgm://h?also=$TWO", "h:443,$TWO,$TWO"),
    ] {
        let (dsn, config) = read(url);
        let config = config.unwrap();
        assert_eq!(config.shown_endpoints(), shown);
        let way = format!("{:?}", config.clone().plaintext(true).connector().unwrap());
        assert!(!format!("{dsn} {config:?} {way}").contains("hid"), "{dsn} {config:?}");
        let also = url.split_once("also=").unwrap().1;
        assert!(dsn.contains(&format!("also: {also:?}")), "{dsn}");
    }
    let (_, wrong) = read("tgm://h?also=i,$BAD");
    let wrong = wrong.unwrap_err();
    assert!(wrong.to_string().contains("gives `also=i,$BAD`"), "{wrong}");
    assert!(!format!("{wrong} {wrong:?}").contains("hid"), "{wrong}");
    let twice = read("tgm://h?also=$ONE,$ONE").1.unwrap_err();
    assert!(twice.to_string().contains("lists `$ONE`, which is given already"), "{twice}");
    // A user may have a password, so it is not shown. Another scheme may have a secret of this name.
    for url in ["tgm://h?also=me:s3cret@i", "x://h?also=s3cret"] {
        assert!(!read(url).0.contains("s3cret"), "{url}");
    }
}
