use std::sync::Arc;

use super::locks::{SharedMutex, SharedRwLock, SharedStateMark};
use super::*;

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn catch_ends_the_work_and_leaves_no_mark() {
    assert_eq!(catch(Scope::Request, || 7).unwrap(), 7);
    assert!(catch(Scope::Request, || panic!("as the test asks")).is_err());
    assert_eq!((SCOPE.get(), HELD.get(), UNWINDING.get()), (None, 0, false));
}

#[test]
fn catch_nested_in_another_scope_marks_the_innermost() {
    let scopes = catch(Scope::Connection, || {
        let inner = catch(Scope::Session, || SCOPE.get());
        (inner.unwrap(), SCOPE.get())
    });
    assert_eq!(scopes.unwrap(), (Some(Scope::Session), Some(Scope::Connection)));
}

#[test]
fn catch_future_marks_only_its_own_polls() {
    let future = async {
        let before = SCOPE.get();
        tokio::task::yield_now().await;
        assert_eq!((before, SCOPE.get()), (Some(Scope::Session), Some(Scope::Session)));
        panic!("as the test asks")
    };
    let mut caught = catch_future::<_>(Scope::Session, future);
    let polled = std::task::Poll::is_pending(
        &Pin::new(&mut caught).poll(&mut Context::from_waker(std::task::Waker::noop())),
    );
    assert!(polled && SCOPE.get().is_none());
    let output: Result<(), Panicked> = block_on(caught);
    assert!(output.is_err());
}

#[test]
fn run_blocking_panics_in_the_caller() {
    let work = catch_future(Scope::Request, async {
        run_blocking(|| {
            assert_eq!(SCOPE.get(), Some(Scope::Request));
            panic!("as the test asks")
        })
        .await
    });
    let output: Result<Result<(), _>, Panicked> = block_on(work);
    assert!(output.is_err());
}

/// As without a hook; with one the process ends before.
#[test]
fn catch_passes_on_panics_inside_shared_state() {
    type Work = Box<dyn FnOnce() + Send>;
    let mutex = Arc::new(SharedMutex::new(1));
    let lock = Arc::new(SharedRwLock::new(1));
    let (mutex, reader, writer) = (mutex.clone(), lock.clone(), lock);
    let work: [Work; 4] = [
        Box::new(move || panic!("as the test asks: {}", *mutex.lock())),
        Box::new(move || panic!("as the test asks: {}", *reader.read())),
        Box::new(move || panic!("as the test asks: {}", *writer.write())),
        Box::new(|| {
            let _mark = SharedStateMark::set();
            panic!("as the test asks")
        }),
    ];
    for work in work {
        let joined = std::thread::spawn(|| catch(Scope::Session, work).is_err()).join();
        assert!(joined.is_err(), "the panic was caught");
    }
}

#[test]
fn unreported_if_due_reports_a_place_once_a_minute() {
    let place = Location::caller();
    let reported: Vec<_> = (0..3).map(|_| unreported_if_due(place)).collect();
    assert_eq!(reported, [Some(0), None, None]);
}
