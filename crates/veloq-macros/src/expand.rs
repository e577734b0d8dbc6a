//! What the two attributes expand to, on `proc_macro2` tokens so that tests can look at it.
//!
//! The order of events: the options are read, the function is read and checked, and the plain function is put together. Each
//! step may find that the input is wrong. Then the answer is the error, pointing at the token that is wrong, together with an
//! empty function of the same name and return type: the compiler then reports that one error, and not a missing `main` or an
//! `async` one beside it.

use proc_macro2::TokenStream;
use quote::quote;
use syn::parse::{Parse, ParseStream};
use syn::{Error, Expr, Ident, ItemFn, Lit, LitBool, Result, Token};

/// Which of the two attributes is being expanded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// `#[veloq::main]`
    Main,
    /// `#[veloq::test]`
    Test,
}

/// What stands in the attribute's parentheses.
#[derive(Default)]
struct Options {
    workers: Option<Expr>,
    pin: Option<LitBool>,
}

/// Expands one attribute; an error in the input becomes a `compile_error!` at the token that is wrong.
pub(crate) fn expand(entry: Entry, options: TokenStream, item: TokenStream) -> TokenStream {
    let function = match parse_function(entry, item) {
        Ok(function) => function,
        Err(error) => return error.into_compile_error(),
    };
    match parse_options(entry, &function, options) {
        Ok(options) => plain_function(entry, &options, function),
        Err(error) => {
            let mut answer = error.into_compile_error();
            answer.extend(empty_function(&function));
            answer
        }
    }
}

fn parse_function(entry: Entry, item: TokenStream) -> Result<ItemFn> {
    syn::parse2(item).map_err(|error| {
        Error::new(error.span(), format!("#[veloq::{entry}] goes on an `async fn`: {error}"))
    })
}

fn parse_options(entry: Entry, function: &ItemFn, options: TokenStream) -> Result<Options> {
    let options = syn::parse2(options)?;
    check(entry, function)?;
    Ok(options)
}

/// The plain function: the async one inside, a runtime around it.
fn plain_function(entry: Entry, options: &Options, function: ItemFn) -> TokenStream {
    let ItemFn { attrs, vis, sig, block } = function;
    let name = &sig.ident;
    let inputs = &sig.inputs;
    let output = &sig.output;
    let builder = builder(entry, options);
    let (test, runtime) = match entry {
        Entry::Main => (
            TokenStream::new(),
            quote! {
                match #builder.build() {
                    ::std::result::Result::Ok(runtime) => runtime,
                    ::std::result::Result::Err(error) => {
                        ::std::eprintln!("veloq: the runtime cannot start: {error}");
                        ::std::process::exit(1)
                    }
                }
            },
        ),
        Entry::Test => (
            quote!(#[::std::prelude::v1::test]),
            quote!(#builder.build().expect("the test's runtime starts")),
        ),
    };
    quote! {
        #test
        #(#attrs)*
        #vis fn #name(#inputs) #output {
            #sig #block
            ::veloq::runtime::Runtime::block_on(#runtime, #name())
        }
    }
}

/// `Builder::new()` and the calls that the options ask for.
fn builder(entry: Entry, options: &Options) -> TokenStream {
    let workers = match (&options.workers, entry) {
        (Some(workers), _) => quote!(.workers(#workers)),
        (None, Entry::Test) => quote!(.workers(1)),
        (None, Entry::Main) => TokenStream::new(),
    };
    let pin = match (&options.pin, entry) {
        (Some(pin), _) => quote!(.pin(#pin)),
        (None, Entry::Test) => quote!(.pin(false)),
        (None, Entry::Main) => TokenStream::new(),
    };
    quote!(::veloq::runtime::Builder::new() #workers #pin)
}

/// What stands in for a function that was refused: nothing else for the compiler to complain about.
fn empty_function(function: &ItemFn) -> TokenStream {
    let ItemFn { attrs, vis, sig, .. } = function;
    let (name, output) = (&sig.ident, &sig.output);
    let attrs = attrs.iter().filter(|attribute| !attribute.path().is_ident("test"));
    quote! {
        #(#attrs)*
        #vis fn #name() #output {
            ::std::unreachable!("the build stops at the error above")
        }
    }
}

/// Refuses a function that no entry point can be made of.
fn check(entry: Entry, function: &ItemFn) -> Result<()> {
    let sig = &function.sig;
    if sig.asyncness.is_none() {
        let message = format!("#[veloq::{entry}] runs a future: write `async fn {}`", sig.ident);
        return Err(Error::new_spanned(sig.fn_token, message));
    }
    if !sig.inputs.is_empty() {
        let message = match entry {
            Entry::Main => "`main` takes no arguments; the command line is in `std::env::args()`",
            Entry::Test => "a test takes no arguments; nobody would pass them",
        };
        return Err(Error::new_spanned(&sig.inputs, message));
    }
    if !sig.generics.params.is_empty() {
        return Err(Error::new_spanned(
            &sig.generics,
            format!("#[veloq::{entry}] does not take generic functions"),
        ));
    }
    if entry == Entry::Test
        && let Some(attribute) = function.attrs.iter().find(|attribute| attribute.path().is_ident("test"))
    {
        let message = "#[veloq::test] makes this a test already; remove #[test], or it would run twice";
        return Err(Error::new_spanned(attribute, message));
    }
    Ok(())
}

impl Parse for Options {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut options = Self::default();
        while !input.is_empty() {
            let name: Ident = input.parse()?;
            let twice = match name.to_string().as_str() {
                "workers" => options.workers.replace(workers(&name, input)?).is_some(),
                "pin" => options.pin.replace(pin(&name, input)?).is_some(),
                unknown => {
                    let message = format!(
                        "unknown option `{unknown}`; there are `workers = N` and `pin = true | false`"
                    );
                    return Err(Error::new(name.span(), message));
                }
            };
            if twice {
                return Err(Error::new(name.span(), format!("`{name}` is given twice")));
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(options)
    }
}

/// The value of `workers`: any expression, but not a literal that can be seen to be wrong.
fn workers(name: &Ident, input: ParseStream<'_>) -> Result<Expr> {
    let value = value(name, "workers = N", input)?;
    if let Expr::Lit(literal) = &value {
        match &literal.lit {
            Lit::Int(number) if number.base10_parse::<usize>()? == 0 => {
                return Err(Error::new_spanned(number, "a runtime has at least one worker"));
            }
            Lit::Int(_) => {}
            other => return Err(Error::new_spanned(other, "`workers` is a number, as in `workers = 4`")),
        }
    }
    Ok(value)
}

/// The value of `pin`.
fn pin(name: &Ident, input: ParseStream<'_>) -> Result<LitBool> {
    let value = value(name, "pin = true | false", input)?;
    if let Expr::Lit(literal) = &value
        && let Lit::Bool(pin) = &literal.lit
    {
        return Ok(pin.clone());
    }
    Err(Error::new_spanned(value, "`pin` is `true` or `false`"))
}

/// What follows `name =`.
fn value(name: &Ident, usage: &str, input: ParseStream<'_>) -> Result<Expr> {
    if input.parse::<Token![=]>().is_err() || input.is_empty() {
        return Err(Error::new(name.span(), format!("`{name}` needs a value: `{usage}`")));
    }
    input.parse()
}

impl std::fmt::Display for Entry {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Main => "main",
            Self::Test => "test",
        })
    }
}

#[cfg(test)]
mod tests {
    //! What could go wrong: an option is lost or misread, an attribute or a return type is dropped, or bad input is accepted, or
    //! refused with an error that points somewhere else. So the expansion is compared token by token, and of an error both its
    //! words and the source text under it are looked at. That the expansion compiles and runs is shown by every test of the
    //! library that uses these attributes.

    use super::*;

    fn tokens(source: &str) -> TokenStream {
        source.parse().expect("a test's source has balanced brackets")
    }

    #[track_caller]
    fn expands(entry: Entry, options: &str, item: &str, expected: &str) {
        let expansion = expand(entry, tokens(options), tokens(item));
        syn::parse2::<ItemFn>(expansion.clone()).expect("the expansion is one function");
        assert_eq!(expansion.to_string(), tokens(expected).to_string());
    }

    /// Asserts what the error says, and which part of the input it underlines.
    #[track_caller]
    fn refuses(entry: Entry, options: &str, item: &str, says: &str, underlines: &str) {
        let error = match parse_function(entry, tokens(item)) {
            Ok(function) => {
                parse_options(entry, &function, tokens(options)).err().expect("the options are refused")
            }
            Err(error) => error,
        };
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(error.span().source_text().as_deref(), Some(underlines));
    }

    #[test]
    fn main_without_options_leaves_every_choice_to_the_builder() {
        expands(
            Entry::Main,
            "",
            "async fn main() -> std::io::Result<()> { serve().await }",
            r#"fn main() -> std::io::Result<()> {
                async fn main() -> std::io::Result<()> { serve().await }
                ::veloq::runtime::Runtime::block_on(match ::veloq::runtime::Builder::new().build() {
                    ::std::result::Result::Ok(runtime) => runtime,
                    ::std::result::Result::Err(error) => {
                        ::std::eprintln!("veloq: the runtime cannot start: {error}");
                        ::std::process::exit(1)
                    }
                }, main())
            }"#,
        );
    }

    #[test]
    fn options_become_calls_of_the_builder() {
        for (options, calls) in [
            ("workers = 4", ".workers(4)"),
            ("workers = cores() - 1", ".workers(cores() - 1)"),
            ("pin = false", ".pin(false)"),
            ("pin = true, workers = 2,", ".workers(2).pin(true)"),
        ] {
            let expansion = expand(Entry::Main, tokens(options), tokens("async fn main() {}")).to_string();
            let builder = tokens(&format!("::veloq::runtime::Builder::new(){calls}.build()")).to_string();
            assert!(expansion.contains(&builder), "{options}: {expansion}");
        }
    }

    #[test]
    fn a_test_has_one_unpinned_worker_and_keeps_its_attributes_and_its_result() {
        expands(
            Entry::Test,
            "",
            "#[should_panic(expected = \"no\")] #[cfg(feature = \"x\")] async fn it_works() -> Result<(), Fault> { body() }",
            r#"#[::std::prelude::v1::test]
            #[should_panic(expected = "no")]
            #[cfg(feature = "x")]
            fn it_works() -> Result<(), Fault> {
                async fn it_works() -> Result<(), Fault> { body() }
                ::veloq::runtime::Runtime::block_on(
                    ::veloq::runtime::Builder::new().workers(1).pin(false).build().expect("the test's runtime starts"),
                    it_works()
                )
            }"#,
        );
    }

    #[test]
    fn a_test_may_ask_for_workers_and_stays_unpinned() {
        let expansion =
            expand(Entry::Test, tokens("workers = 3"), tokens("async fn it_works() {}")).to_string();
        assert!(expansion.contains(&tokens(".workers(3).pin(false)").to_string()), "{expansion}");
    }

    #[test]
    fn a_function_that_is_not_async_is_refused_at_its_fn() {
        refuses(Entry::Main, "", "fn main() {}", "write `async fn main`", "fn");
        refuses(Entry::Test, "", "fn it_works() {}", "write `async fn it_works`", "fn");
    }

    #[test]
    fn arguments_are_refused_where_they_stand() {
        refuses(Entry::Main, "", "async fn main(n: u8) {}", "takes no arguments", "n: u8");
        refuses(Entry::Test, "", "async fn it_works(n: u8) {}", "takes no arguments", "n: u8");
    }

    #[test]
    fn generic_functions_are_refused() {
        refuses(Entry::Main, "", "async fn main<T>() {}", "generic", "<T>");
    }

    #[test]
    fn a_second_test_attribute_is_refused_where_it_stands() {
        refuses(Entry::Test, "", "#[test] async fn it_works() {}", "remove #[test]", "#[test]");
    }

    #[test]
    fn options_that_do_not_exist_are_named() {
        refuses(Entry::Main, "threads = 4", "async fn main() {}", "unknown option `threads`", "threads");
    }

    #[test]
    fn options_given_twice_are_refused_at_the_second() {
        refuses(
            Entry::Main,
            "workers = 1, workers = 2",
            "async fn main() {}",
            "`workers` is given twice",
            "workers",
        );
    }

    #[test]
    fn values_that_cannot_be_right_are_refused() {
        refuses(Entry::Main, "workers = 0", "async fn main() {}", "at least one worker", "0");
        refuses(Entry::Main, "workers = \"4\"", "async fn main() {}", "is a number", "\"4\"");
        refuses(Entry::Main, "workers", "async fn main() {}", "`workers` needs a value", "workers");
        refuses(Entry::Main, "workers =", "async fn main() {}", "`workers` needs a value", "workers");
        refuses(Entry::Main, "pin = 1", "async fn main() {}", "`true` or `false`", "1");
    }

    #[test]
    fn what_is_no_function_is_refused() {
        refuses(Entry::Main, "", "struct Main;", "goes on an `async fn`", "struct");
    }

    #[test]
    fn a_refused_function_leaves_an_empty_one_behind_so_that_one_error_is_reported() {
        let expansion = expand(Entry::Main, tokens("what"), tokens("async fn main() -> u8 { 0 }"));
        let file = syn::parse2::<syn::File>(expansion).expect("whole items");
        let [_, syn::Item::Fn(function)] = file.items.as_slice() else { panic!("an error and a function") };
        assert!(function.sig.asyncness.is_none() && function.sig.ident == "main");
        assert_eq!(
            quote::ToTokens::to_token_stream(&function.sig.output).to_string(),
            tokens("-> u8").to_string()
        );
    }
}
