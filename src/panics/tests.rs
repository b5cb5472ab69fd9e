use std::sync::Arc;

use super::locks::{SharedMutex, SharedRwLock, SharedStateSection};
use super::*;

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn catch_returns_panic_and_resets_thread_state() {
    assert_eq!(catch_panic(PanicScope::Request, || 7).unwrap(), 7);
    assert!(catch_panic(PanicScope::Request, || panic!("as the test asks")).is_err());
    assert_eq!((CURRENT_SCOPE.get(), SHARED_STATE_DEPTH.get(), IS_UNWINDING.get()), (None, 0, false));
}

#[test]
fn nested_catch_reports_innermost_scope() {
    let scopes = catch_panic(PanicScope::Connection, || {
        let inner = catch_panic(PanicScope::Session, || CURRENT_SCOPE.get());
        (inner.unwrap(), CURRENT_SCOPE.get())
    });
    assert_eq!(scopes.unwrap(), (Some(PanicScope::Session), Some(PanicScope::Connection)));
}

#[test]
fn catch_future_sets_scope_only_during_poll() {
    let future = async {
        let before = CURRENT_SCOPE.get();
        tokio::task::yield_now().await;
        assert_eq!((before, CURRENT_SCOPE.get()), (Some(PanicScope::Session), Some(PanicScope::Session)));
        panic!("as the test asks")
    };
    let mut caught = catch_future_panic::<_>(PanicScope::Session, future);
    let polled = std::task::Poll::is_pending(
        &Pin::new(&mut caught).poll(&mut Context::from_waker(std::task::Waker::noop())),
    );
    assert!(polled && CURRENT_SCOPE.get().is_none());
    let output: Result<(), CaughtPanic> = block_on(caught);
    assert!(output.is_err());
}

#[test]
fn run_blocking_propagates_panic_to_caller() {
    let work = catch_future_panic(PanicScope::Request, async {
        run_blocking(|| {
            assert_eq!(CURRENT_SCOPE.get(), Some(PanicScope::Request));
            panic!("as the test asks")
        })
        .await
    });
    let output: Result<Result<(), _>, CaughtPanic> = block_on(work);
    assert!(output.is_err());
}

/// Without a hook. With one, the process ends before the panic is caught.
#[test]
fn catch_propagates_panics_inside_shared_state() {
    type Work = Box<dyn FnOnce() + Send>;
    let mutex = Arc::new(SharedMutex::new(1));
    let lock = Arc::new(SharedRwLock::new(1));
    let (mutex, reader, writer) = (mutex.clone(), lock.clone(), lock);
    let work: [Work; 4] = [
        Box::new(move || panic!("as the test asks: {}", *mutex.lock())),
        Box::new(move || panic!("as the test asks: {}", *reader.read())),
        Box::new(move || panic!("as the test asks: {}", *writer.write())),
        Box::new(|| {
            let _mark = SharedStateSection::enter();
            panic!("as the test asks")
        }),
    ];
    for work in work {
        let joined = std::thread::spawn(|| catch_panic(PanicScope::Session, work).is_err()).join();
        assert!(joined.is_err(), "the panic was caught");
    }
}

#[test]
fn panic_location_is_reported_once_a_minute() {
    let place = Location::caller();
    let reported: Vec<_> = (0..3).map(|_| unreported_count_if_due(place)).collect();
    assert_eq!(reported, [Some(0), None, None]);
}
