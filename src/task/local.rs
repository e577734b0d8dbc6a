//! The declaration of task-locals. What they do is told in [`TaskLocal`](super::TaskLocal).

/// Declares values that each task can have its own of, as [`TaskLocal`](crate::task::TaskLocal)s.
///
/// ```
/// veloq::task_local! {
///     /// Which request this task works for.
///     static REQUEST: u64;
/// }
///
/// async fn log(what: &str) -> String {
///     REQUEST.with(|request| format!("{request}: {what}"))
/// }
///
/// # veloq::runtime::Builder::new().workers(1).pin(false).build()?.block_on(async {
/// let line = REQUEST.scope(17, async {
///     veloq::task::yield_now().await;
///     log("started").await
/// });
/// assert_eq!(line.await, "17: started");
/// assert!(REQUEST.try_with(|_| ()).is_err(), "outside of the scope there is none");
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
#[macro_export]
macro_rules! task_local {
    ($($(#[$attr:meta])* $vis:vis static $name:ident: $type:ty;)*) => {$(
        $(#[$attr])*
        $vis static $name: $crate::task::TaskLocal<$type> = {
            ::std::thread_local! {
                static SLOT: ::std::cell::RefCell<::std::option::Option<$type>> =
                    const { ::std::cell::RefCell::new(::std::option::Option::None) };
            }
            $crate::task::TaskLocal::new(&SLOT)
        };
    )*};
}
