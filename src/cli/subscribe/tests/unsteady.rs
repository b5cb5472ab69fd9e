//! The shown rows equal those of the service, under random failures.

use std::collections::BTreeMap;

use super::*;

/// A service whose state changes at random, and which randomly drops connections, forgets tokens
/// and truncates snapshots.
struct Unsteady {
    random: u64,
    /// The state after each epoch.
    states: Vec<BTreeMap<String, u32>>,
}

impl Unsteady {
    fn below(&mut self, n: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % n
    }

    fn step(&mut self) {
        let mut state = self.states.last().unwrap().clone();
        for _ in 0..1 + self.below(3) {
            let city = self.below(8).to_string();
            if self.below(3) == 0 {
                state.remove(&city)
            } else {
                state.insert(city, self.below(60) as u32)
            };
        }
        self.states.push(state);
    }

    /// The changes from one state to another.
    fn changes(&self, from: usize, to: usize) -> Value {
        let (before, after) = (&self.states[from], &self.states[to]);
        let upserts: Vec<Value> = after
            .iter()
            .filter(|(city, minute)| before.get(*city) != Some(minute))
            .map(|(city, minute)| row(city, *minute))
            .collect();
        let gone = before.iter().filter(|(city, _)| !after.contains_key(*city));
        let removals: Vec<Value> = gone.map(|(city, minute)| key(city, *minute)).collect();
        changes(to as u64, &upserts, &removals)
    }

    /// Serves one connection, until the last epoch or a random failure.
    async fn serve(&mut self, session: &mut Session<TcpStream>, subscription: &Value, last: usize) {
        let token =
            subscription.get("resume").map(|token| token.as_str().unwrap()[1..].parse::<usize>().unwrap());
        let mut sent = match token {
            Some(token) if self.below(3) > 0 => token,
            token => {
                if token.is_some() {
                    session.send(json!({"type": "reset", "id": "a", "reason": "expired"})).await;
                }
                let as_of = self.states.len() - 1;
                let rows: Vec<Value> =
                    self.states[as_of].iter().map(|(city, minute)| row(city, *minute)).collect();
                let (first, second) = rows.split_at(rows.len() / 2);
                let mut part = snapshot(as_of as u64, first);
                part["complete"] = json!(false);
                part.as_object_mut().unwrap().remove("token");
                session.send(part).await;
                if self.below(4) == 0 {
                    return;
                }
                session.send(snapshot(as_of as u64, second)).await;
                as_of
            }
        };
        while sent < last {
            if self.below(6) == 0 {
                return;
            }
            let steps = self.below(3);
            (0..steps).for_each(|_| self.step());
            let now = self.states.len() - 1;
            if now > sent {
                session.send(self.changes(sent, now)).await;
                sent = now;
            }
        }
    }
}

#[tokio::test]
async fn events_match_state_of_unreliable_service() {
    for seed in 0..20 {
        let mut stage = Stage::new(OutputStyle::Json).await;
        let mut service = Unsteady { random: seed, states: vec![BTreeMap::new()] };
        service.step();
        let (done, mut seen) = mpsc::channel::<()>(1);
        let mut outputs = std::mem::replace(&mut stage.outputs, mpsc::channel(1).1);
        let serving = async {
            while service.states.len() <= 100 {
                let (mut session, subscription) = stage.session().await;
                service.serve(&mut session, &subscription, 100).await;
                if service.states.len() > 100 {
                    // Until the client has received everything.
                    seen.recv().await;
                }
            }
            service.states.last().unwrap().clone()
        };
        let watching = async {
            let mut map = BTreeMap::new();
            let mut as_of = 0;
            while as_of < 100 {
                let output = timeout(DEADLINE, outputs.recv()).await.unwrap().unwrap();
                let PrinterOutput::Lines(lines) = output else { continue };
                for line in lines.lines() {
                    let event: Value = serde_json::from_str(line).unwrap();
                    as_of = event["as_of"].as_u64().unwrap_or(as_of);
                    let row = &event["row"];
                    let city = row["city"].as_str().unwrap_or_default().to_owned();
                    let at = || row["reading_at"].as_str().unwrap().to_owned();
                    match event["event"].as_str().unwrap() {
                        "upsert" => drop(map.insert(city, at())),
                        // Not a repeat: a removed row exists.
                        "removal" => assert_eq!(map.remove(&city), Some(at())),
                        "reset" => map.clear(),
                        _ => {}
                    }
                }
            }
            done.send(()).await.unwrap();
            map
        };
        let (state, map) = tokio::join!(serving, watching);
        let minute = |minute: &u32| format!("2025-11-24T16:{minute:02}:00Z");
        let state: BTreeMap<String, String> =
            state.iter().map(|(city, at)| (city.clone(), minute(at))).collect();
        assert_eq!(map, state, "seed {seed}");
    }
}
