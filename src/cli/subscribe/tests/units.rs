//! Units: requested by flags, and shown as the service names them.

use super::*;

#[tokio::test]
async fn rows_are_printed_in_units_of_message() {
    let celsius = |message: Value| {
        let mut message = message;
        message["units"] = "celsius".into();
        message["wind_units"] = "km/h".into();
        message
    };
    let mut stage = Stage::new(OutputStyle::Json).await;
    let (mut session, _) = stage.session().await;
    session.send(celsius(snapshot(5, &[row("1", 0)]))).await;
    let upsert =
        json!({"event": "upsert", "as_of": 5, "units": "celsius", "wind_units": "km/h", "row": row("1", 0)});
    assert_eq!(stage.events().await, [upsert]);
    let mut stage = Stage::new(OutputStyle::Human).await;
    let (mut session, _) = stage.session().await;
    session.send(celsius(snapshot(5, &[row("1", 0)]))).await;
    let lines = stage.lines().await;
    assert!(lines[0].contains("  91.3 °C  mean   84.0 °C  "), "{lines:?}");
    session.send(changes(6, &[row("1", 1)], &[])).await;
    let lines = stage.lines().await;
    assert!(lines[0].contains("  91.3 °F  mean   84.0 °F  "), "{lines:?}");
    let mut unknown = changes(7, &[row("1", 2)], &[]);
    unknown["units"] = "kel\u{1b}vin".into();
    session.send(unknown).await;
    let lines = stage.lines().await;
    assert!(lines[0].contains("  91.3 kel") && !lines[0].contains('\u{1b}'), "{lines:?}");
}

#[test]
fn subscription_requests_units_of_flags() {
    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: SubscribeArgs,
    }
    let asked = |line: &str| {
        let words = ["subscribe", "http://127.0.0.1:1", "x"].into_iter().chain(line.split_whitespace());
        let parsed = <Command as clap::Parser>::try_parse_from(words);
        parsed.map(|command| Value::Object(command.args.subscription_request().unwrap_or_default()))
    };
    assert_eq!(asked("").unwrap(), json!({"cities": ["x"], "rows": "latest"}));
    assert_eq!(
        asked("--output-units celsius --output-wind-units m/s").unwrap(),
        json!({"cities": ["x"], "rows": "latest", "units": "celsius", "wind_units": "m/s"})
    );
    assert!(asked("--output-units kelvin").is_err() && asked("--output-wind-units knots").is_err());
}
