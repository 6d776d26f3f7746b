//! What is refused: bodies that two readers could read in two ways, and those nested too deeply.

use super::*;

#[test]
fn what_could_be_read_two_ways_is_a_fault_with_the_id_if_it_is_sure() {
    let fault =
        |body: &str| Scan::whole(body.as_bytes()).map_err(|(f, id)| (f, id.map(|id| id.raw().to_vec())));
    let one = Some(b"1".to_vec());
    let twice = [
        r#"{"id":1,"params":{"sessionId":"a","session\u0049d":"b"}}"#,
        r#"{"params":{},"id":1,"params":{"sessionId":"b"}}"#,
        r#"{"method":"a","method":"b","id":1}"#,
        r#"{"id":1,"params":{"options":{"sessionId":"a","sessionId":"a"}}}"#,
        r#"{"id":1,"result":1,"result":2}"#,
        r#"{"error":{},"id":1,"error":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"jsonrpc":"2.0"}"#,
        r#"{"id":1,"params":{"requestId":"a","requestId":"b"}}"#,
        r#"{"id":1,"params":{"id":1,"id":2},"method":"$/cancelRequest"}"#,
        r#"{"id":1,"method":"$/cancelRequest","params":{"id":1,"id":2}}"#,
    ];
    for body in twice {
        assert_eq!(fault(body), Err((BodyFault::Duplicate, one.clone())), "{body}");
    }
    let at_once = [
        r#"{"id":1,"result":{},"method":"m"}"#,
        r#"{"id":1,"method":"m","error":{}}"#,
        r#"{"id":1,"method":"m","result":null}"#,
        r#"{"id":1,"m\u0065thod":"m","resul\u0074":null}"#,
        r#"{"result":0,"id":1,"error":{"code":1}}"#,
        r#"{"error":{"code":1},"result":[],"id":1}"#,
    ];
    for body in at_once {
        assert_eq!(fault(body), Err((BodyFault::Contradiction, one.clone())), "{body}");
    }
    for body in [
        r#"{"id":1,"method":"m"}"#,
        r#"{"jsonrpc":"1.0","id":1}"#,
        r#"{"jsonrpc":2.0,"id":1}"#,
        r#"{"id":1,"jsonrpc":null}"#,
    ] {
        assert_eq!(fault(body), Err((BodyFault::Version, one.clone())), "{body}");
    }
    let params = |params: &str| fault(&of(&format!(r#""id":1,"params":{params},"method":"m"}}"#)));
    // Of these the CLI 1.0.102 ends at `[]` in a session.resume; others read the object in an array.
    for odd in [
        "[]",
        "[null]",
        r#"["X"]"#,
        r#"[{"sessionId":"a"}]"#,
        "[1,[{}]]",
        "5",
        "-1",
        "true",
        "false",
        r#""{""#,
    ] {
        assert_eq!(params(odd), Err((BodyFault::Params, one.clone())), "{odd}");
        let body = of(&format!(r#""id":1,"params":{odd},"method":"m"}}"#));
        assert!(Scan::whole_of(By::Backend, body.as_bytes()).is_ok(), "a server may: {odd}");
    }
    for harmless in ["null", "{}", " { } "] {
        assert!(params(harmless).is_ok(), "{harmless}");
    }
    let two_of_a_tool = r#""id":1,"params":{"id":1,"id":2},"method":"session.log"}"#;
    assert!(
        fault(&of(two_of_a_tool)).is_ok(),
        "to a method that cancels nothing it is one member among others"
    );
    assert_eq!(fault(r#"{"id":1,"id":2}"#), Err((BodyFault::Duplicate, None)));
    assert_eq!(fault(r#"{"id":{},"method":"m"}"#), Err((BodyFault::BadId, None)));
    assert_eq!(fault(r#"{"id":12x,"method":"m"}"#), Err((BodyFault::BadId, None)));
    assert_eq!(fault(r#"{"id":null,"method":"m"}"#), Err((BodyFault::BadId, None)));
    assert_eq!(fault(r#"{"method":"m","id":null}"#), Err((BodyFault::BadId, None)));
    for odd in ["1.0", "-0", "1e3", r#""\u0061b""#] {
        let body = format!(r#"{{"id":{odd},"method":"m"}}"#);
        assert_eq!(fault(&body), Err((BodyFault::BadId, Some(odd.into()))), "it can be answered");
    }
    assert_eq!(fault(r#"{"id":1.0,"id":2}"#), Err((BodyFault::BadId, None)));
    assert_eq!(fault(&format!(r#"{{"id":"{}"}}"#, "a".repeat(256))), Err((BodyFault::BadId, None)));
    let no_text = Scan::whole(b"{\"id\":\"a\xbe\",\"method\":\"m\"}").map_err(|(fault, _)| fault);
    assert_eq!(no_text, Err(BodyFault::BadId), "it would be echoed");
    assert_eq!(fault(r#"{"id":1,"params":{"sessionId":7}}"#), Err((BodyFault::WrongType, one.clone())));
    assert_eq!(fault(r#"[{"id":1}]"#), Err((BodyFault::NotAnObject, None)));
    assert_eq!(fault("{\"id\":1} x"), Err((BodyFault::NotJson, one.clone())));
    assert_eq!(fault(&format!(r#"{{"id":1,"a":{}"#, "[".repeat(100_000))), Err((BodyFault::TooDeep, one)));
}

#[test]
fn what_is_nested_as_deep_as_servers_take_is_taken() {
    for (before, after) in
        [(r#""x":"#, "}"), (r#""params":{"x":"#, "}}"), (r#""params":{"options":{"x":"#, "}}}")]
    {
        let nested = |depth: usize| of(&format!("{before}{}{}{after}", "[".repeat(depth), "]".repeat(depth)));
        let most = 127 - after.len();
        assert!(Scan::whole(nested(most).as_bytes()).is_ok(), "{before}");
        let fault = Scan::whole(nested(most + 1).as_bytes()).map_err(|(fault, _)| fault);
        assert_eq!(fault, Err(BodyFault::TooDeep), "{before}");
        let deep = nested(100_000);
        let end = deep.len() - 1;
        let of_server = Scan::whole_of(By::Backend, deep.as_bytes());
        assert!(of_server.is_ok(), "servers say what is nested deeper: {before}");
        let id_last = format!(r#"{},"id":7}}"#, &deep[..end]);
        let fault =
            Scan::whole(id_last.as_bytes()).map_err(|(fault, id)| (fault, id.unwrap().raw().to_vec()));
        assert_eq!(fault, Err((BodyFault::TooDeep, b"7".to_vec())), "its id is found behind it");
        assert!(serde_json::from_str::<Value>(&nested(most)).is_ok());
        assert!(serde_json::from_str::<Value>(&nested(most + 1)).is_err());
    }
}
